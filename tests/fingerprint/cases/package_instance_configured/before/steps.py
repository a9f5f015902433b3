from lib import Client

C = Client('a')
C.f(1)

def step(x):
    return C.f(x)
