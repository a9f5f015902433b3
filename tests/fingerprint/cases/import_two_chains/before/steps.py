import helpers
from helpers import clean

def step(x):
    return clean(x) + helpers.RATE
