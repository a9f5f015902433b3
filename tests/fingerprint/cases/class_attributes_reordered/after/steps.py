class A:
    b = 2
    a = 1

def step(x):
    return A.a
