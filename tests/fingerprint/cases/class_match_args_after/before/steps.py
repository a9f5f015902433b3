class C:
    def __init__(self): self.a, self.b = 1, 2
C.__match_args__ = ("a",)
def step():
    match C():
        case C(x): return x
