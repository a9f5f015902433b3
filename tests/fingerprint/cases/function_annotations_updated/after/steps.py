def helper(a):
    return a


helper.__annotations__.update(a=str)


def step(x):
    return str(helper.__annotations__)
