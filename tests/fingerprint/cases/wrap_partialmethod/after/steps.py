import functools

class A:
    def scale(self, x, n):
        return x * n

    twice = functools.partialmethod(scale, n=3)

def step(x):
    return A().twice(x)
