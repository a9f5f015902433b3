import lib

from . import ext  # noqa: F401


def step(x):
    return lib.KNOWN["hook"](x)
