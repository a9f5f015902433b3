def make(rate):
    def step(x):
        return x * rate
    return step

step = make(3)
