import pkg

def step(x):
    return x * pkg.RATE
