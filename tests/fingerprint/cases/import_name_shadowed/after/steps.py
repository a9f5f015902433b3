def helper(x):
    return x

def helper(x):
    return x + 2

def step(x):
    return helper(x)
