from contextvars import ContextVar

VALUE = ContextVar("v", default=1)

def step(x):
    return x, VALUE
