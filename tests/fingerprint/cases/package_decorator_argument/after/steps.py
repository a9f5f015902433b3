import lib

@lib.deco(times=4)
def step(x):
    return x + 1
