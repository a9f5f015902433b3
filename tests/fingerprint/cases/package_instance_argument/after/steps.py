from lib import Client

C = Client('b')

def step(x):
    return C.f(x)
