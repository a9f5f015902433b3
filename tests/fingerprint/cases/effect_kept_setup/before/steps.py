import random, decimal
from setup import prepare, quiet, chain
READY = prepare()
Q = quiet(3)
C = [chain() for _ in range(2)]
def step(x): return random.random(), decimal.Decimal(1) / 3
