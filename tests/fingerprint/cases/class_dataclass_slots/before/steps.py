from dataclasses import dataclass

@dataclass(slots=True, kw_only=True)
class A:
    n: int = 1

    def f(self):
        return self.n

def step(x):
    return A().f()
