import lib

@lib.deco(times=3)
def step(x):
    return x + 1
