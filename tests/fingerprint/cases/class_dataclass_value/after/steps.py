from dataclasses import dataclass

@dataclass
class A:
    a: int = 1

ITEM = A(4)

def step(x):
    return ITEM.a
