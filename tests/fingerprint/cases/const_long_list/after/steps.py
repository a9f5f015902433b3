VALUE = list(range(999)) + [0]

def step(x):
    return x, VALUE
