import numbers


@numbers.Number.register
class Money:
    pass


def step(x):
    return isinstance(Money(), numbers.Number)
