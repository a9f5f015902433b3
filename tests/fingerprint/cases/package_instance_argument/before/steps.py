from lib import Client

C = Client('a')

def step(x):
    return C.f(x)
