from pkg.one import f

def step(x):
    return f(x)
