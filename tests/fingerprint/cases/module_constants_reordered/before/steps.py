A = 1
B = 2

def step(x):
    return A, B
