def step(x):
    return sorted(x, key=lambda v: v[0])
