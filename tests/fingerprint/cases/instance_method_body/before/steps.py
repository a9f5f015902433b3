class Scale:
    def __init__(self, rate):
        self.rate = rate

    def run(self, x):
        return x * self.rate

SCALE = Scale(3)

def step(x):
    return SCALE.run(x)
