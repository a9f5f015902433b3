def step(x):
    return x.split('\n')
