import helpers

BASE = 3

def step(x):
    return helpers.clean(x)
