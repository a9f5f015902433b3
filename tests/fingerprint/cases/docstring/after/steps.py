RATE = 3


def helper(x):
    """Doc of helper."""
    return x * RATE


def step(x):
    """Other words."""
    return helper(x)
