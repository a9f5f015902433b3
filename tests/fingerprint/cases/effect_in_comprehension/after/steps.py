import random, decimal, os, sys, functools, importlib, contextlib
from decimal import getcontext as g
from helpers import Seeder, seeded, seed_all, R2
X = [seed_all(n) for n in (44,)]
def step(x): return random.random(), decimal.Decimal(x) / 3, R2.random()
