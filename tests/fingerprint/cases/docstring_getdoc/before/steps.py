import inspect

def helper(x):
    """Say."""
    return x

def step(x):
    return inspect.getdoc(helper) + x
