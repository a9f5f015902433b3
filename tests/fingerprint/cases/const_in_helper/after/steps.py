RATE = 4

def helper(x):
    return x * RATE

def step(x):
    return helper(x)
