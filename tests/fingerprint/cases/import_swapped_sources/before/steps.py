from one import clean

def step(x):
    return clean(x)
