NAN = float("nan")

def step(x):
    return x, NAN
