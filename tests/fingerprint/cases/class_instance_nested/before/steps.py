class A:
    def __init__(self, **kw):
        self.__dict__.update(kw)

ITEM = A(b=A(c=[A(d=3)]))

def step(x):
    return ITEM.b.c[0].d
