VALUE = b"b"

def step(x):
    return x, VALUE
