RATE = 3

def step(x):
    def inner(y):
        return y * RATE
    return inner(x)
