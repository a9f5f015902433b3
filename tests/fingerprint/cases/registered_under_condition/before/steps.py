import lib

if lib.KNOWN is not None:

    @lib.hook
    def price(x):
        return x * 2


def step(x):
    return lib.KNOWN["hook"](x)
