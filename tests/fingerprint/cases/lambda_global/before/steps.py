RATE = 3
scale = lambda x: x * RATE

def step(x):
    return scale(x)
