class Base:
    def f(self):
        return 3

class A(Base):
    def f(self):
        return super().f() + 1

def step(x):
    return A().f()
