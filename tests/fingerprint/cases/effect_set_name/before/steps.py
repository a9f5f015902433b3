import random, decimal, os, sys, functools, importlib, contextlib
from decimal import getcontext as g
from helpers import Seeder, seeded, seed_all, R2
class D:
    def __set_name__(self, o, n): random.seed(33)
class Unused:
    d = D()
def step(x): return random.random(), decimal.Decimal(x) / 3, R2.random()
