import weakref

class A:
    def __init__(self, n):
        self.n = n

ITEM = A(3)
REF = weakref.ref(ITEM)

def step(x):
    return REF().n
