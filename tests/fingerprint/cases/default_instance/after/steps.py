class Scale:
    def __init__(self, n):
        self.n = n

def step(x, scale=Scale(4)):
    return x * scale.n
