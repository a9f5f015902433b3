helper = lambda x: x + 1

def step(x):
    return helper(x)
