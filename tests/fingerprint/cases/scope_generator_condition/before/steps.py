LIMIT = 3

def step(x):
    return sum(i for i in x if i < LIMIT)
