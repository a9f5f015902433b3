LIMIT = 3

def step(x):
    if (y := LIMIT) > x:
        return y
    return 0
