from dataclasses import dataclass

@dataclass(frozen=True)
class A:
    n: int = 1

def step(x):
    return A()
