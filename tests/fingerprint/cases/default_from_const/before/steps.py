RATE = 3

def step(x, rate=RATE):
    return x * rate
