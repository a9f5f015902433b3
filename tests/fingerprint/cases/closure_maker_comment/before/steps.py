def make(n):
    def step(x):
        return x * n
    return step

step = make(3)
