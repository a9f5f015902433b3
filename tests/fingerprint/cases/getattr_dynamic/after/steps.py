import helpers

def step(x, name="clean"):
    return getattr(helpers, name)(x)
