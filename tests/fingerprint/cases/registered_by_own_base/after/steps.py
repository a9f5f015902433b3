import lib


class Known:
    def __init_subclass__(cls):
        lib.KNOWN["class"] = cls


class Mine(Known):
    def run(self, x):
        return x * 3


def step(x):
    return lib.KNOWN["class"]().run(x)
