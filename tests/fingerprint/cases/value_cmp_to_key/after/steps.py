import functools

def compare(a, b):
    return b - a

KEY = functools.cmp_to_key(compare)

def step(x):
    return sorted(x, key=KEY)
