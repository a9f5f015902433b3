from vendor import lib


def step(x):
    return lib.f()
