RATE = 4

class A:
    n = RATE * 2

def step(x):
    return A.n
