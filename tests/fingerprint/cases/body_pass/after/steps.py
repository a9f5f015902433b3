def step(x):
    pass
    'note'
    ...
    return x
