import lib


@lib.wrapping
def price(x):
    return x * 3


def step(x):
    return x
