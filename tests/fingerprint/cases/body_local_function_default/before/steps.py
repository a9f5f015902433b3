def step(x):
    def inner(y=1):
        return y
    return inner()
