B = 2
A = 1

def step(x):
    return A, B
