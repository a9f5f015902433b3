VALUE = list(range(1000))

def step(x):
    return x, VALUE
