import enum

class M(enum.Enum):
    A = 1

    @classmethod
    def _missing_(cls, value):
        return None

def step(x):
    return M(x)
