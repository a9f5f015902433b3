A, B = (lambda x: x + 2), (lambda x: x + 1)

def step(x):
    return B(x)
