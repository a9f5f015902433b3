class A:
    def __new__(cls, x):
        return x + 2

def step(x):
    return A(x)
