def one(f):
    return lambda x: f(x) + 1

def two(f):
    return lambda x: f(x) * 2

@one
@two
def step(x):
    return x
