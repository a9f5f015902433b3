VALUE = b"a"

def step(x):
    return x, VALUE
