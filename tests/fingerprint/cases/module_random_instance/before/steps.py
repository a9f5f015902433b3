import random

RNG = random.Random(3)

def step(x):
    return RNG.random()
