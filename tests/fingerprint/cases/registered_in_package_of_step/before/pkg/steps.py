import lib


def step(x):
    return lib.KNOWN["hook"](x)
