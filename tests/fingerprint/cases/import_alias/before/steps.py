from helpers import clean as c

def step(x):
    return c(x)
