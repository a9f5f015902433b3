from mix import Mixin

class Base:
    pass

class A(Mixin, Base):
    pass

def step(x):
    return A().f(x)
