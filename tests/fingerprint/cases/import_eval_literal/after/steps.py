RATE = 4

def step(x):
    return eval('x * RATE')
