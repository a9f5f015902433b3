RATE = 3

def step(x):
    def inner(y, rate=RATE):
        return y * rate
    return inner(x)
