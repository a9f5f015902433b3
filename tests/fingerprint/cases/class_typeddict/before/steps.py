from typing import TypedDict

class D(TypedDict):
    a: int

def step(x):
    return D.__required_keys__
