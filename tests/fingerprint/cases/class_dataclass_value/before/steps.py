from dataclasses import dataclass

@dataclass
class A:
    a: int = 1

ITEM = A(3)

def step(x):
    return ITEM.a
