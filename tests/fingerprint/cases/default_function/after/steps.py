def one(x):
    return x + 2

def step(x, f=one):
    return f(x)
