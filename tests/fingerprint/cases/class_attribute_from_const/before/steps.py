RATE = 3

class A:
    n = RATE * 2

def step(x):
    return A.n
