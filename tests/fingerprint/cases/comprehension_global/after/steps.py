RATE = 4

def step(x):
    return [y * RATE for y in range(x)]
