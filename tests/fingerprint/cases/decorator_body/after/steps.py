import functools

def twice(f):
    @functools.wraps(f)
    def inner(x):
        return f(x) * 3
    return inner

@twice
def step(x):
    return x
