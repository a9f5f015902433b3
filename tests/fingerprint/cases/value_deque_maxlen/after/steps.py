from collections import deque

VALUE = deque([1], 4)

def step(x):
    return x, VALUE
