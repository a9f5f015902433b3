def twice(f):
    def inner(self, x):
        return f(self, x) * 2
    return inner

class A:
    @twice
    def f(self, x):
        return x

def step(x):
    return A().f(x)
