import enum

class M(enum.Enum):
    """Modes."""

    # a
    A = 1

def step(x):
    return M.A
