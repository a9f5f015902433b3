import lib


@lib.wrapping
def price(x):
    return x * 2


def step(x):
    return x
