VALUE = True

def step(x):
    return x, VALUE
