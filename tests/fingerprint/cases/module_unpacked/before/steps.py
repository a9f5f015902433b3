A, (B, *C) = 1, (2, 3, 4)

def step(x):
    return C
