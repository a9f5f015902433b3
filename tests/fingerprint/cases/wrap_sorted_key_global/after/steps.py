INDEX = 1

def step(x):
    return sorted(x, key=lambda v: v[INDEX])
