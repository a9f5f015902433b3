from dataclasses import dataclass

@dataclass(slots=True, kw_only=True)
class A:
    n: int = 2

    def f(self):
        return self.n

def step(x):
    return A().f()
