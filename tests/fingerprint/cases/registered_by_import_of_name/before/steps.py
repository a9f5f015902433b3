from pkg.ext import price  # noqa: F401
import lib


def step(x):
    return lib.KNOWN["hook"](x)
