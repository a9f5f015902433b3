from lib import call, saved


@saved.connect
def price(x):
    return x * 2


def step(x):
    return call(x)
