def helper(a):
    return a


helper.__annotations__ = {"a": int}


def step(x):
    return str(helper.__annotations__)
