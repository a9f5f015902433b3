BASE = 4
RATE = BASE * 2

def step(x):
    return x * RATE
