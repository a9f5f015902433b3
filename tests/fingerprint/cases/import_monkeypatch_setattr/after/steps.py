import helpers

setattr(helpers, 'RATE', 8)

def step(x):
    return x * helpers.RATE
