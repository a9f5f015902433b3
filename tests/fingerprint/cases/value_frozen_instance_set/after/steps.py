class P:
    def __init__(self, n):
        self.n = n

ITEMS = {P(1), P(3)}

def step(x):
    return [i.n for i in ITEMS]
