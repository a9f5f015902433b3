class A:
    def f(self, n=3):
        return n

def step(x):
    return A().f()
