import two
import one

def step(x):
    return one.f(x) + two.f(x)
