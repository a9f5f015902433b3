from collections import Counter

VALUE = Counter("abb")

def step(x):
    return x, VALUE
