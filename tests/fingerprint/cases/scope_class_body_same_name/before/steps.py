rate = 3

def step(x):
    class Local:
        rate = rate
    return x * Local.rate
