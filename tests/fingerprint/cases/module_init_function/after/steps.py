RATE = 0

def setup():
    global RATE
    RATE = 4

setup()

def step(x):
    return x * RATE
