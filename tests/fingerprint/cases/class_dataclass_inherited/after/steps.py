from dataclasses import dataclass

@dataclass
class Base:
    a: int = 3

@dataclass
class A(Base):
    b: int = 2

def step(x):
    return A().a
