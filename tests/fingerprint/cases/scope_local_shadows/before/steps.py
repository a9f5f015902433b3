rate = 3

def step(x):
    rate = 2
    return x * rate
