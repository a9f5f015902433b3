import helpers

NAME = 'clean'

def step(x):
    return getattr(helpers, NAME)(x)
