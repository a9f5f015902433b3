import ext  # noqa: F401
import lib


def step(x):
    return lib.KNOWN["geo"]().area(x)
