import typing

def step(x):
    if typing.TYPE_CHECKING:
        from helpers import Kind
    return x
