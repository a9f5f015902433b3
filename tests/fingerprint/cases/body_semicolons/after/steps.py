def step(x):
    y = x; return y
