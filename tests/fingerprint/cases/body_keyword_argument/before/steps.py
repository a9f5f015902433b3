def step(x):
    return sorted(x, reverse=True)
