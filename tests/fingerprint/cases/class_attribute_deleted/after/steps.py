class A:
    r = 1
class B(A):
    r = 2
pass
def step(x):
    return B.r
