VALUE = {1: "a"}

def step(x):
    return x, VALUE
