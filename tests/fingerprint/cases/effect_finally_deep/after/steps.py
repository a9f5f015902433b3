import random
def a():
    try:
        return b()
    finally:
        c()
def b(): return 1
def c(): random.seed(SEED)
SEED = 8
READY = a()
VALUE = (lambda: a())()
def step(x): return random.random()
