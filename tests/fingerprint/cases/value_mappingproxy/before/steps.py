from types import MappingProxyType

VALUE = MappingProxyType({"a": 1})

def step(x):
    return x, VALUE
