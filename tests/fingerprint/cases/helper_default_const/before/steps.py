RATE = 3

def helper(x, rate=RATE):
    return x * rate

def step(x):
    return helper(x)
