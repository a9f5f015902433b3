OTHER = 9
RATE = 3


def helper(x):
    """Doc of helper."""
    return x * RATE


def step(x):
    """Doc of step."""
    return helper(x)
