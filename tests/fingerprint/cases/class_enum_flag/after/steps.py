import enum

class M(enum.Flag):
    A = 1
    B = 2

BOTH = M.A

def step(x):
    return BOTH
