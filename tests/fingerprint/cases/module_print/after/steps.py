print('loading', file=__import__('sys').stderr)


def helper(x):
    return x

def step(x):
    return helper(x)
