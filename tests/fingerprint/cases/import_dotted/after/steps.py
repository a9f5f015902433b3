import pkg.sub.helpers

def step(x):
    return pkg.sub.helpers.clean(x)
