import lib

def other(x):
    return lib.f(x)

def step(x):
    return x
