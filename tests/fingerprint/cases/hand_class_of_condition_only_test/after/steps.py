FAST = 1


def mark(text):
    def apply(cls):
        return cls

    return apply


if FAST > 2:

    @mark("a")
    class Engine:
        pass

else:

    @mark("b")
    class Engine:
        pass


def step(x):
    return Engine.__name__
