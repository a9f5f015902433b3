class A:
    def __init__(self, n):
        self.n = n

    def f(self, x):
        return x * self.n

helper = A(3).f

def step(x):
    return helper(x)
