import enum

class M(enum.StrEnum):
    A = enum.auto()
    B = 'c'

def step(x):
    return M.B + x
