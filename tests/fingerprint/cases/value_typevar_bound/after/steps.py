from typing import TypeVar

T = TypeVar('T', bound=str)

def step(x):
    return T.__bound__(x)
