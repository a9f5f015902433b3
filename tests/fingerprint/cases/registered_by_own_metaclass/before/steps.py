import lib


class Meta(type):
    def __init__(cls, name, bases, names):
        super().__init__(name, bases, names)
        lib.KNOWN["class"] = cls


class Known(metaclass=Meta):
    pass


class Mine(Known):
    def run(self, x):
        return x * 2


def step(x):
    return lib.KNOWN["class"]().run(x)
