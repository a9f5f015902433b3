import abc
class A(abc.ABC): pass
class B: pass
A.register(str)
def step(x):
    return isinstance(x, A)
