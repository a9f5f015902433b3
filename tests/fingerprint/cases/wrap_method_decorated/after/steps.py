def twice(f):
    def inner(self, x):
        return f(self, x) * 2
    return inner

class A:
    @twice
    def f(self, x):
        return x + 2

def step(x):
    return A().f(x)
