import functools


@functools.singledispatch
def helper(x):
    return 1


helper.limit = 3


def step(x):
    return helper.limit
