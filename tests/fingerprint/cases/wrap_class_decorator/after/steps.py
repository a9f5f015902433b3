class Times:
    def __init__(self, n):
        self.n = n

    def __call__(self, f):
        return lambda x: f(x) * self.n

@Times(4)
def helper(x):
    return x

def step(x):
    return helper(x)
