Number = int | float

def step(x):
    return isinstance(x, Number)
