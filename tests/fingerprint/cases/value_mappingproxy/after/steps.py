from types import MappingProxyType

VALUE = MappingProxyType({"a": 2})

def step(x):
    return x, VALUE
