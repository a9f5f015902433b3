import lib

signal = lib.Signal()


@signal.connect
def price(x):
    return x * 3


def step(x):
    return lib.call(x)
