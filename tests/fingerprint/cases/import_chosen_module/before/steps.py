import one
import two

ALL = [one, two]

def step(x):
    return [m.f(x) for m in ALL]
