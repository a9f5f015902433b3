from dataclasses import dataclass

@dataclass
class A:
    # a
    a: int = 1

def step(x):
    return A()
