from dataclasses import dataclass, field

@dataclass
class A:
    n: list = field(default_factory=lambda: [2])

def step(x):
    return A().n
