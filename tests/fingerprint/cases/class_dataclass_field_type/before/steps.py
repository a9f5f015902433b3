from dataclasses import dataclass, fields

@dataclass
class A:
    a: int = 1

def step(x):
    return [f.type for f in fields(A)]
