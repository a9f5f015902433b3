class scaled(property):
    def __init__(self, get, factor):
        super().__init__(get)
        self.factor = factor

    def __get__(self, item, kind=None):
        return super().__get__(item, kind) * self.factor


class Row:
    price = scaled(lambda self: 3, 10)


def step(x):
    return Row().price
