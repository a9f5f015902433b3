def step(x):
    return x, 16, 'x', r'\d', 1000
