def items(x):
    yield x
    yield x + 1

def step(x):
    return list(items(x))
