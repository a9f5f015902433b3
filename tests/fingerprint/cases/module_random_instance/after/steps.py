import random

RNG = random.Random(4)

def step(x):
    return RNG.random()
