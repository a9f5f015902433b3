import operator

class A(int):
    __call__ = operator.add

def step(x):
    return A(1)(x)
