import enum

class M(enum.Enum):
    A = 1
    B = 2

MODE = M.B

def step(x):
    return MODE is M.A
