TEXT = "a" * 5000 + "c" + "a" * 5000

def step(x):
    return TEXT + x
