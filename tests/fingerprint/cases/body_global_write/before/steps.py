def step(x):
    global SEEN
    SEEN = x
    return x
