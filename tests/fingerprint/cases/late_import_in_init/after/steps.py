def init():
    global helpers
    import helpers
def step():
    init()
    return helpers.rate()
