import enum

class Mode(enum.Enum):
    FAST = 1
    SLOW = 3

def step(x):
    return x * Mode.SLOW.value
