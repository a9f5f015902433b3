from dataclasses import dataclass

@dataclass
class A:
    a: int
    b: int

def step(x):
    return A(1, 2).a
