VALUE = {"b": 2, "a": 1}

def step(x):
    return x, VALUE
