from typing import NamedTuple

class P(NamedTuple):
    a: int
    b: int

def step(x):
    return P(1, 2).a
