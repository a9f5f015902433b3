VALUE = ValueError("b")

def step(x):
    return x, VALUE
