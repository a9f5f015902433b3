class A:
    def f(self, n=4):
        return n

def step(x):
    return A().f()
