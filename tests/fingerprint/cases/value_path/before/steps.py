from pathlib import Path

VALUE = Path("a/b")

def step(x):
    return x, VALUE
