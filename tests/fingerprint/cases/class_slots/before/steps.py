class A:
    __slots__ = ('a', 'b')

def step(x):
    return A.__slots__
