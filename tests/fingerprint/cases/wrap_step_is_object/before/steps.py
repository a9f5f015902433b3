class Wrap:
    def __init__(self, f):
        self.f = f

    def __call__(self, x):
        return self.f(x)

@Wrap
def step(x):
    return x + 1
