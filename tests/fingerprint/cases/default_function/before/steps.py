def one(x):
    return x + 1

def step(x, f=one):
    return f(x)
