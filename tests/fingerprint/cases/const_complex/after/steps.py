VALUE = 1+3j

def step(x):
    return x, VALUE
