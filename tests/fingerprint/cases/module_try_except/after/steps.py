try:
    RATE = int('x')
except ValueError:
    RATE = 4

def step(x):
    return x * RATE
