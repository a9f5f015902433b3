import dataclasses
import functools


@dataclasses.dataclass
class Mine:
    x: int = 2


@functools.cache
def price(x):
    return x * 3


def step(x):
    return x
