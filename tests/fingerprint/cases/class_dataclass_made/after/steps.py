from dataclasses import make_dataclass

A = make_dataclass('A', [('a', int, 2)])

def step(x):
    return A().a
