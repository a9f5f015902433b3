from . import base

RATE = base.N * 2
