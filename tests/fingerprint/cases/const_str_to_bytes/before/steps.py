VALUE = "a"

def step(x):
    return x, VALUE
