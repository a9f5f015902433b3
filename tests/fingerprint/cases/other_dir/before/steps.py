import os

HERE = os.path.dirname(os.path.abspath(__file__))

def step(x):
    return os.path.join(HERE, x)
