Number = int | str

def step(x):
    return isinstance(x, Number)
