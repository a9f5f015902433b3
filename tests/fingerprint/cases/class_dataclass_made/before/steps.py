from dataclasses import make_dataclass

A = make_dataclass('A', [('a', int, 1)])

def step(x):
    return A().a
