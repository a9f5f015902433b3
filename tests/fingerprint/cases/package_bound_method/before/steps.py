import lib

call = lib.c.f


def step(x):
    return call()
