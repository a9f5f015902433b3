def helper(x):
    return x

def helper(x):
    return x + 1

def step(x):
    return helper(x)
