from dataclasses import dataclass

@dataclass
class A:
    a: int = 1

    def __post_init__(self):
        self.b = self.a + 1

def step(x):
    return A().b
