def step(x):
    return x * 3
