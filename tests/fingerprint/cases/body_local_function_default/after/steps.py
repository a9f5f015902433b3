def step(x):
    def inner(y=2):
        return y
    return inner()
