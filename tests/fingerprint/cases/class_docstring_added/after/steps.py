class Bad(Exception):
    """Bad."""

def step(x):
    raise Bad
