import random

random.seed(4)

def step(x):
    return random.random()
