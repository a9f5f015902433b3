import functools

def scale(x, rate):
    return x * rate

helper = functools.partial(scale, rate=3)

def step(x):
    return helper(x)
