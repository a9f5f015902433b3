import enum

class M(enum.StrEnum):
    A = enum.auto()
    B = 'b'

def step(x):
    return M.B + x
