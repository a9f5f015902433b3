rate = 4

def step(x):
    return x.rate
