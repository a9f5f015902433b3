VALUE = 1.0

def step(x):
    return x, VALUE
