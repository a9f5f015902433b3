from random import random, seed

seed(4)

def step(x):
    return random()
