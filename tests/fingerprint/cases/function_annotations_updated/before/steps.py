def helper(a):
    return a


helper.__annotations__.update(a=int)


def step(x):
    return str(helper.__annotations__)
