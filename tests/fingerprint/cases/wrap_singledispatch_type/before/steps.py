import functools

@functools.singledispatch
def show(x):
    return x

@show.register
def _(x: int):
    return x + 1

def step(x):
    return show(x)
