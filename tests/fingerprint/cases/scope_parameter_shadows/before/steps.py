rate = 3

def step(x, rate):
    return x * rate
