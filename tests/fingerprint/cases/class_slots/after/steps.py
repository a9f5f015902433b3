class A:
    __slots__ = ('a', 'c')

def step(x):
    return A.__slots__
