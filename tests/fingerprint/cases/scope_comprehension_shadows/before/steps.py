i = 3

def step(x):
    return [i for i in range(x)]
