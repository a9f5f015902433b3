RATE = 3
OTHER = 5

def step(x, rate=RATE):
    return x * rate
