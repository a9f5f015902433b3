from typing import NamedTuple

class P(NamedTuple):
    b: int
    a: int

def step(x):
    return P(1, 2).a
