def deep(x):
    return x + 2

def helper(x):
    return deep(x)

def step(x):
    return helper(x)
