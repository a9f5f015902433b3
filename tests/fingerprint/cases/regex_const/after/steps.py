import re

WORD = re.compile("[a-y]+")

def step(x):
    return WORD.sub("", x)
