BASE = 3
RATE = BASE * 2

def step(x):
    return x * RATE
