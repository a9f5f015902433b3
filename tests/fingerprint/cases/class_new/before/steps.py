class A:
    def __new__(cls, x):
        return x + 1

def step(x):
    return A(x)
