f = 3

def step(x):
    with x as f:
        return f
