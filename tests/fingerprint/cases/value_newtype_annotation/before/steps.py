from typing import NewType
Id = NewType("Id", str)
def step(x: Id) -> Id:
    return x
