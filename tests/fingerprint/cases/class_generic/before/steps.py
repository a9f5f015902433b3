from typing import Generic, TypeVar

T = TypeVar('T')

class Box(Generic[T]):
    def __init__(self, x):
        self.x = x

    def get(self):
        return self.x, 1

def step(x):
    return Box[int](x).get()
