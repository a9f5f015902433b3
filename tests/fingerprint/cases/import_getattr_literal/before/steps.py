import helpers

def step(x):
    return getattr(helpers, 'clean')(x)
