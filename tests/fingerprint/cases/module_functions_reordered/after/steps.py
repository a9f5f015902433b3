def b(x):
    return a(x) * 2

def a(x):
    return x + 1

def step(x):
    return b(x)
