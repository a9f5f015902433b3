class A:
    rate = 1

A.rate = 3

def step(x):
    return A.rate
