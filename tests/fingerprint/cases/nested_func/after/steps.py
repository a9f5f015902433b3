def step(x):
    def inner(y):
        return y + 2
    return inner(x)
