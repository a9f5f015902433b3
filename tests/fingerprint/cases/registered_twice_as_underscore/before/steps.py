import lib


@lib.register(int)
def _(x):
    return x * 2


@lib.register(str)
def _(x):
    return x


def step(x):
    return lib.KNOWN[int](x)
