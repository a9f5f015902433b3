class Tool:
    """A tool."""

def step(x):
    return Tool.__doc__ + x
