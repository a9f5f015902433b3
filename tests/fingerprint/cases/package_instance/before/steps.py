from lib import Client

C = Client()

def step(x):
    return C.f(x)
