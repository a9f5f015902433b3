RATE = 0

def setup():
    global RATE
    RATE = 3

setup()

def step(x):
    return x * RATE
