import pkg.sub.helpers as h

def step(x):
    return h.clean(x)
