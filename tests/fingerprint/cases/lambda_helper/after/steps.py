helper = lambda x: x + 2

def step(x):
    return helper(x)
