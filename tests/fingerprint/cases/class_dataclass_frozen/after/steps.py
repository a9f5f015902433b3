from dataclasses import dataclass

@dataclass(frozen=False)
class A:
    n: int = 1

def step(x):
    return A()
