import random

random.seed(3)

def step(x):
    return random.random()
