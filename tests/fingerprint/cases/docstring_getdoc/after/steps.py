import inspect

def helper(x):
    """Tell."""
    return x

def step(x):
    return inspect.getdoc(helper) + x
