import lib


def known(function):
    lib.KNOWN["own"] = function
    return function


@known
def price(x):
    return x * 2


def step(x):
    return lib.KNOWN["own"](x)
