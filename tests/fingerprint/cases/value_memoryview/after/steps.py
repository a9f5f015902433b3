VALUE = memoryview(b"ac")

def step(x):
    return x, VALUE
