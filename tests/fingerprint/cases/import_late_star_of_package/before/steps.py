import helpers

def step(x):
    return helpers.clean(x)
