from pkg import tidy

def step(x):
    return tidy(x)
