import lib

RATE = 3


@lib.hook
def price(x):
    return x * RATE


def step(x):
    return lib.KNOWN["hook"](x)
