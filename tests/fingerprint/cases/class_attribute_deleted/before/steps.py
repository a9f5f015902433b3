class A:
    r = 1
class B(A):
    r = 2
del B.r
def step(x):
    return B.r
