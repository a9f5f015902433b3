LIMIT = 4

def step(x):
    return sum(i for i in x if i < LIMIT)
