import functools

def plus(n):
    def deco(f):
        @functools.wraps(f)
        def inner(x):
            return f(x) + n
        return inner
    return deco

@plus(1)
@plus(3)
def step(x):
    return x
