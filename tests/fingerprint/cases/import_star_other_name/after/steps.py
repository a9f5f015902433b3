from helpers import *

def step(x):
    return clean(x)
