import lib

signal = lib.Signal()


@signal.connect
def price(x):
    return x * 2


def step(x):
    return lib.call(x)
