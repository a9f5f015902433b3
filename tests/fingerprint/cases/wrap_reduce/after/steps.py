import functools

def add(a, b):
    return a + b

def half(x):
    return x / 3

def step(x):
    return functools.reduce(add, map(half, x))
