import random
def make(r):
    def go(): return r.random()
    return go
A = make(random.Random(2))
B = make(random.Random(1))
def step(x): return A(), B()
