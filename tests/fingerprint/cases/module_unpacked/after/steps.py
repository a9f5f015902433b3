A, (B, *C) = 1, (2, 3, 5)

def step(x):
    return C
