import lib

known_as = lib.register


@known_as("price")
def price(x):
    return x * 2


def step(x):
    return lib.KNOWN["price"](x)
