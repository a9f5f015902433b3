def step(x):
    return print(**x)
