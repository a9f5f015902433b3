def one(x):
    return x + 1

TABLE = {"one": one}

def step(x):
    return TABLE["one"](x)
