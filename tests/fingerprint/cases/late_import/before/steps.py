def step(x):
    from helpers import clean
    return clean(x)
