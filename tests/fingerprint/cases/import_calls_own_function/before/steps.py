import random, conf
def step(x):
    return random.random()
