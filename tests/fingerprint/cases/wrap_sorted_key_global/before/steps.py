INDEX = 0

def step(x):
    return sorted(x, key=lambda v: v[INDEX])
