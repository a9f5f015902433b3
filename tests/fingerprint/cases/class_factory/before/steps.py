def make(n):
    class A:
        rate = n
    return A

A = make(3)

def step(x):
    return A.rate
