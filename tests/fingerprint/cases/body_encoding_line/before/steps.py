def step(x):
    return 'ä' + x
