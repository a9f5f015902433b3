def one(x):
    return 1

def two(x):
    return 3

one.__code__ = two.__code__

def step(x):
    return one(x)
