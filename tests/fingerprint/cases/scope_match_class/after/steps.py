class Point:
    __match_args__ = ('y',)

    def __init__(self, x):
        self.x = x

def step(p):
    match p:
        case Point(1):
            return 1
    return 0
