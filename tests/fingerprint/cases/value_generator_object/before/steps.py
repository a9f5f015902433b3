ITEMS = (i * 2 for i in range(9))

def step(x):
    return next(ITEMS)
