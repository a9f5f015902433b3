import itertools

ITEMS = itertools.cycle([1, 2])

def step(x):
    return next(ITEMS)
