import enum

class M(enum.Enum):
    A = (1, 2)

    def __init__(self, a, b):
        self.rate = a * b

def step(x):
    return M.A.rate
