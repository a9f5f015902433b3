import random, decimal, os, sys, functools, importlib, contextlib
from decimal import getcontext as g
from helpers import Seeder, seeded, seed_all, R2
class Meta(type):
    def __init__(cls, *a): random.seed(44)
class Unused(metaclass=Meta): pass
def step(x): return random.random(), decimal.Decimal(x) / 3, R2.random()
