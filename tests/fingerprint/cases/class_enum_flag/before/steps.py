import enum

class M(enum.Flag):
    A = 1
    B = 2

BOTH = M.A | M.B

def step(x):
    return BOTH
