rate = 4

def step(x):
    rate = 2
    return x * rate
