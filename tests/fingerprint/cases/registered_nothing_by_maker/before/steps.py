import dataclasses
import functools


@dataclasses.dataclass
class Mine:
    x: int = 1


@functools.cache
def price(x):
    return x * 2


def step(x):
    return x
