def step(x):
    return x.split('\t')
