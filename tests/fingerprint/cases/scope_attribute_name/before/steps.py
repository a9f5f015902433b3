rate = 3

def step(x):
    return x.rate
