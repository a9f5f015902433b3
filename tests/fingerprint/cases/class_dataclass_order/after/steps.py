from dataclasses import dataclass

@dataclass
class A:
    b: int
    a: int

def step(x):
    return A(1, 2).a
