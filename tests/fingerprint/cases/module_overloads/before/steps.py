from typing import overload

@overload
def helper(x: int) -> int: ...
@overload
def helper(x: str) -> str: ...
def helper(x):
    return x

def step(x):
    return helper(x)
