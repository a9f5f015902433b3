import helpers

BASE = 4

def step(x):
    return helpers.clean(x)
