VALUE = ValueError("a")

def step(x):
    return x, VALUE
