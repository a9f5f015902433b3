helpers = None
def step():
    global helpers
    if helpers is None:
        import helpers
    return helpers.rate()
