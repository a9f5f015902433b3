from collections import Counter

VALUE = Counter("aab")

def step(x):
    return x, VALUE
