import lib


@lib.hook
def price(x):
    return x * 3


def step(x):
    return lib.KNOWN["hook"](x)
