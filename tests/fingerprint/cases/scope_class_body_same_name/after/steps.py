rate = 4

def step(x):
    class Local:
        rate = rate
    return x * Local.rate
