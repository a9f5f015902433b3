from typing import NamedTuple

class P(NamedTuple):
    x: int = 3

    def f(self):
        return 2

def step(x):
    return P().f()
