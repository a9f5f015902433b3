from dataclasses import dataclass, field

@dataclass
class A:
    n: list = field(default_factory=lambda: [1])

def step(x):
    return A().n
