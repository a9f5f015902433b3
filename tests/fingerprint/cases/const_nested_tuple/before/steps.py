VALUE = (1, (2, (3,)))

def step(x):
    return x, VALUE
