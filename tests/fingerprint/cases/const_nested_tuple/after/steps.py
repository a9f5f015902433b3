VALUE = (1, (2, (4,)))

def step(x):
    return x, VALUE
