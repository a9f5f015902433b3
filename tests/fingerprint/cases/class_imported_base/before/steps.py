import base

class A(base.Base):
    pass

def step(x):
    return A().f()
