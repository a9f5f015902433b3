def twice(f):
    return lambda x: f(x) * 3

def step(x):
    @twice
    def inner(y):
        return y
    return inner(x)
