import numbers


@numbers.Integral.register
class Money:
    pass


def step(x):
    return isinstance(Money(), numbers.Number)
