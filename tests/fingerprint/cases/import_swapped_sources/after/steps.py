from two import clean

def step(x):
    return clean(x)
