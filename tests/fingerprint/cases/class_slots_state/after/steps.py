class A:
    __slots__ = ('n',)

    def __init__(self, n):
        self.n = n

ITEM = A(4)

def step(x):
    return ITEM.n
