import random
def seed_all(n):
    random.seed(n)
    return n
def other(n): return seed_all(n)
def calm(n): return n
A = seed_all(1)
B = seed_all(2)
C = other(3)
D = calm(4)
E = calm(5)
F = other(6)
def step(x): return random.random()
