RATE = 3

def step(x):
    class Local:
        rate = RATE
    return x * Local.rate
