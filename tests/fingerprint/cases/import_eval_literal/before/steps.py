RATE = 3

def step(x):
    return eval('x * RATE')
