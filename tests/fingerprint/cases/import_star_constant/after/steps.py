from helpers import *

def step(x):
    return x * RATE
