VALUE = bytearray(b"ab")

def step(x):
    return x, VALUE
