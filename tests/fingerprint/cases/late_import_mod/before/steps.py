def step(x):
    import helpers
    return helpers.clean(x)
