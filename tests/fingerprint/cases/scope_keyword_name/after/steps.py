key = 4

def step(x):
    return sorted(x, key=len)
