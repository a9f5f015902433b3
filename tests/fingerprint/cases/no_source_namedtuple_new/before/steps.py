exec('def helper(x):\n    return x + 1')

def step(x):
    return helper(x)
