from types import SimpleNamespace

VALUE = SimpleNamespace(a=1)

def step(x):
    return x, VALUE
