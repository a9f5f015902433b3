from typing import NamedTuple
class P(NamedTuple):
    x: int
P.ORIGIN = P(1)
def step(): return P.ORIGIN.x
