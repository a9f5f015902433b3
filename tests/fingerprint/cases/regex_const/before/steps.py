import re

WORD = re.compile("[a-z]+")

def step(x):
    return WORD.sub("", x)
