from lib import f

def step(x):
    return f(x)
