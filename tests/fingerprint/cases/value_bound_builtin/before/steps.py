VALUE = "ab".join

def step(x):
    return x, VALUE
