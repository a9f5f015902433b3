import re

VALUE = re.compile("a")

def step(x):
    return x, VALUE
