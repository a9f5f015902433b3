class One:
    def f(self):
        return 1

class Two:
    def f(self):
        return 2

class A(Two, One):
    pass

def step(x):
    return A().f()
