from lib import Client

C = Client('a')
C.f(2)

def step(x):
    return C.f(x)
