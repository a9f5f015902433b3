def step(x):
    return min(x)
