RATE = 4

def step(x):
    class Local:
        rate = RATE
    return x * Local.rate
