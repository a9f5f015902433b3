from collections import defaultdict

VALUE = defaultdict(list)

def step(x):
    return x, VALUE
