def step(x):
    from . import helpers as h
    return h.clean(x)
