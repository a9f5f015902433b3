class A:
    rate = 1

A.rate = 4

def step(x):
    return A.rate
