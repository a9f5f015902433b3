VALUE = max

def step(x):
    return x, VALUE
