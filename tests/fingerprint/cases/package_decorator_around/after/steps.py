import lib

@lib.deco(times=3)
def helper(x):
    return x + 2

def step(x):
    return helper(x)
