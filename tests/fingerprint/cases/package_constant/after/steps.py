from lib import RATE

def step(x):
    return x * RATE
