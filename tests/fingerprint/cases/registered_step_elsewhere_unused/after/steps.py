import lib


def step(x):
    return len(lib.KNOWN) * 0
