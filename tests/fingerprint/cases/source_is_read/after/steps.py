import inspect


def helper(x):
    return x  # unchanged


def step(x):
    return inspect.getsource(helper)
