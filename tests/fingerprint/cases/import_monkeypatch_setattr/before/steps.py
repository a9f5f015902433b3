import helpers

setattr(helpers, 'RATE', 7)

def step(x):
    return x * helpers.RATE
