ITEMS = iter([1, 3])

def step(x):
    return next(ITEMS)
