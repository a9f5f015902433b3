def make(n):
    class A:
        rate = n
    return A

A = make(4)

def step(x):
    return A.rate
