import lib


class Prices:
    @lib.hook
    def price(self, x=1):
        return 2


def step(x):
    return lib.KNOWN["hook"](x)
