class Tool:
    """The tool."""

def step(x):
    return Tool.__doc__ + x
