VALUE = 1+2j

def step(x):
    return x, VALUE
