class A:
    n: float = 1

    def f(self, x: str) -> int:
        return x

def step(x):
    return A().f(x)
