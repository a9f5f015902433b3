from dataclasses import dataclass

RATE = 3

@dataclass
class A:
    n: int = RATE

def step(x):
    return A().n
