import enum

class Mode(enum.Enum):
    FAST = 1
    SLOW = 2

def step(x):
    return x * Mode.SLOW.value
