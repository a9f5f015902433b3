def deep(x):
    return x + 1

def helper(x):
    return deep(x)

def step(x):
    return helper(x)
