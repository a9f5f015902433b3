import itertools

ITEMS = itertools.cycle([1, 3])

def step(x):
    return next(ITEMS)
