"""Use {}."""

def step(x):
    return __doc__.format(x)
