import helpers as h

PIPE = (h.clean, str)

def step(x):
    for f in PIPE:
        x = f(x)
    return x
