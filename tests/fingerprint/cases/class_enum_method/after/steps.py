import enum

class M(enum.Enum):
    A = 1

    def f(self):
        return 2

def step(x):
    return M.A.f()
