def make():
    import helpers
    def step(x):
        return helpers.clean(x)
    return step

step = make()
