from functools import partial
class Scale:
    def __init__(self, rate): self.rate = rate
    def run(self, x, y): return x * self.rate + y
run = partial(Scale(4).run, y=1)
def step(x):
    return run(x)
