from typing import Protocol, runtime_checkable

@runtime_checkable
class Has(Protocol):
    def b(self): ...

def step(x):
    return isinstance(x, Has)
