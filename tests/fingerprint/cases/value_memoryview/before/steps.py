VALUE = memoryview(b"ab")

def step(x):
    return x, VALUE
