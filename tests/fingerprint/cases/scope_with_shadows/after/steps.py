f = 4

def step(x):
    with x as f:
        return f
