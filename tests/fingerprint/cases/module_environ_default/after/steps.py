import os

RATE = int(os.environ.get('PFL_NOT_SET', '4'))

def step(x):
    return x * RATE
