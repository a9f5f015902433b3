class A:
    n = 1

class B:
    n = 1

def step(x):
    return A.n
