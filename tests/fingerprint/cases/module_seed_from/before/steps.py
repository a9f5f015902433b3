from random import random, seed

seed(3)

def step(x):
    return random()
