VALUE = [1, 2]

def step(x):
    return x, VALUE
