def step(x):
    return sorted(x, reverse=False)
