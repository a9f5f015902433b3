class Base:
    __slots__ = ("rate",)


class Row(Base):
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate
        Base.rate.__set__(self, None)


ROW = Row(4)


def step(x):
    return ROW.rate
