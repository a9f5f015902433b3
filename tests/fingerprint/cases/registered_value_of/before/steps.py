import lib

RATE = 2


@lib.hook
def price(x):
    return x * RATE


def step(x):
    return lib.KNOWN["hook"](x)
