from pathlib import Path

VALUE = Path("a/c")

def step(x):
    return x, VALUE
