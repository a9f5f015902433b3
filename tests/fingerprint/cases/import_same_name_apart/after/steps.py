import one
import two

def step(x):
    return one.f(x) - two.f(x)
