# makes
def make(n):
    # inner
    def step(x):
        return x * n
    return step

step = make(3)
