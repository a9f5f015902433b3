RATE = 3

def step(x):
    return [y * RATE for y in range(x)]
