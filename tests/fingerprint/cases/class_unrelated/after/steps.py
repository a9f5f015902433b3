class A:
    n = 1

class B:
    n = 2

def step(x):
    return A.n
