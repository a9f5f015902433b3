RATE = 4

class A:
    def f(self):
        return RATE

def step(x):
    return A().f()
