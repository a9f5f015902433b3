SIZE = 3600

def step(x):
    return x * SIZE
