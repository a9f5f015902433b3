from dataclasses import dataclass, field

def make():
    return [2]

@dataclass
class A:
    a: list = field(default_factory=make)

def step(x):
    return A().a
