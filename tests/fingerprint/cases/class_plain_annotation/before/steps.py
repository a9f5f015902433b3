class A:
    n: int = 1

    def f(self, x: int) -> int:
        return x

def step(x):
    return A().f(x)
