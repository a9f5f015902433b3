RATE = 3


def helper(x):
    """Other."""
    return x * RATE


def step(x):
    """Doc of step."""
    return helper(x)
