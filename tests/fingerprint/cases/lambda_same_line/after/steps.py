A, B = (lambda x: x + 1), (lambda x: x + 3)

def step(x):
    return B(x)
