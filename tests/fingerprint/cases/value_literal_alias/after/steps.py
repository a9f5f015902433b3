from typing import Literal, get_args

Kinds = Literal['a', 'c']

def step(x):
    return x in get_args(Kinds)
