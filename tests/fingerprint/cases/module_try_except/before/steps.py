try:
    RATE = int('x')
except ValueError:
    RATE = 3

def step(x):
    return x * RATE
