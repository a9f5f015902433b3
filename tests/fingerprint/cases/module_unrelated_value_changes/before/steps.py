import time

STARTED = time.time()

def step(x):
    return x
