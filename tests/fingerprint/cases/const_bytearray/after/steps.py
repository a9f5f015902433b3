VALUE = bytearray(b"ac")

def step(x):
    return x, VALUE
