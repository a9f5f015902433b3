from typing import TypedDict

class D(TypedDict):
    b: int

def step(x):
    return D.__required_keys__
