from collections import defaultdict

VALUE = defaultdict(set)

def step(x):
    return x, VALUE
