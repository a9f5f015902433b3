RATE = 3

def step(x):
    return x * RATE
