class Base:
    def __init_subclass__(cls, rate=1):
        cls.rate = rate * 3

class A(Base, rate=3):
    pass

def step(x):
    return A.rate
