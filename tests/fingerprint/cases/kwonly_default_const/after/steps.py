RATE = 4

def step(x, *, rate=RATE):
    return x * rate
