RATE = 3

def step(x):
    return x * globals()['RATE']
