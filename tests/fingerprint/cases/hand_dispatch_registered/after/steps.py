import functools


@functools.singledispatch
def helper(x):
    return 1


@helper.register
def _(x: int):
    return 3


def step(x):
    return helper(3)
