VALUE = 10**50

def step(x):
    return x, VALUE
