import lib


def step(x):
    import pkg.ext  # noqa: F401

    return lib.KNOWN["hook"](x)
