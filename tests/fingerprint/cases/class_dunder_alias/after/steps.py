import operator

class A(int):
    __call__ = operator.sub

def step(x):
    return A(1)(x)
