def twice(f):
    return lambda x: f(x) * 2

def step(x):
    @twice
    def inner(y):
        return y
    return inner(x)
