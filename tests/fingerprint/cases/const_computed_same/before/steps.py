SIZE = 60 * 60

def step(x):
    return x * SIZE
