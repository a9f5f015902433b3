import one
import two

def step(x):
    return one.N - two.N
