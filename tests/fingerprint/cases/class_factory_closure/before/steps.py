def make(n):
    class A:
        def f(self):
            return n
    return A

A = make(3)

def step(x):
    return A().f()
