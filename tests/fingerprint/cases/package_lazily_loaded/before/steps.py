import pkg


def step(x):
    return pkg.rate()
