def add(cls):
    cls.rate = 3
    return cls

@add
class A:
    pass

def step(x):
    return A.rate
