from dataclasses import dataclass

@dataclass
class A:
    a: 'int' = 1

def step(x):
    return A()
