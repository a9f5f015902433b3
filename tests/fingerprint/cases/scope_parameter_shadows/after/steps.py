rate = 4

def step(x, rate):
    return x * rate
