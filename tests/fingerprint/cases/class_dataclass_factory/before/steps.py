from dataclasses import dataclass, field

def make():
    return [1]

@dataclass
class A:
    a: list = field(default_factory=make)

def step(x):
    return A().a
