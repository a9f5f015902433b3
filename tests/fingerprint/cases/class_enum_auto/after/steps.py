import enum

class M(enum.Enum):
    Z = enum.auto()
    A = enum.auto()
    B = enum.auto()

def step(x):
    return M.B.value
