def one(x):
    return x + 2

def make(inner):
    def step(x):
        return inner(x)
    return step

step = make(one)
