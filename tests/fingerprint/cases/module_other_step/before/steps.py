def a(x):
    return 1

def step(x):
    return 2
