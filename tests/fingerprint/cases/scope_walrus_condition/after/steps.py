LIMIT = 4

def step(x):
    if (y := LIMIT) > x:
        return y
    return 0
