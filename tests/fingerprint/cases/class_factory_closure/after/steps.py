def make(n):
    class A:
        def f(self):
            return n
    return A

A = make(4)

def step(x):
    return A().f()
