import re

VALUE = re.compile("a", re.I)

def step(x):
    return x, VALUE
