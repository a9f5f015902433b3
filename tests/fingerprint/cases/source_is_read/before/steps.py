import inspect


def helper(x):
    return x  # as it is


def step(x):
    return inspect.getsource(helper)
