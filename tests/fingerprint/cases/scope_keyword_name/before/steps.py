key = 3

def step(x):
    return sorted(x, key=len)
