def add(cls):
    cls.rate = 4
    return cls

@add
class A:
    pass

def step(x):
    return A.rate
