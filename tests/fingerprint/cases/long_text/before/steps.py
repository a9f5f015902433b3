TEXT = "a" * 5000 + "b" + "a" * 5000

def step(x):
    return TEXT + x
