def helper(x):
    """Say {}."""
    return x

def step(x):
    return helper.__doc__.format(x)
