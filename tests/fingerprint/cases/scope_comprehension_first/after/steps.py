x = [1, 3]

def step(y):
    return [x for x in x]
