VALUE = "ac".join

def step(x):
    return x, VALUE
