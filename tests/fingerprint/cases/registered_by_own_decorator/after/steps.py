import lib


def known(function):
    lib.KNOWN["own"] = function
    return function


@known
def price(x):
    return x * 3


def step(x):
    return lib.KNOWN["own"](x)
