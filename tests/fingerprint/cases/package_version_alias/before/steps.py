import lib as l

def helper(x):
    return l.f(x)

def step(x):
    return helper(x)
