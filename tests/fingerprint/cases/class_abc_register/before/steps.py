import abc
class A(abc.ABC): pass
class B: pass
A.register(int)
def step(x):
    return isinstance(x, A)
