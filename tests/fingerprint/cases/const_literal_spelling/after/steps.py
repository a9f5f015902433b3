def step(x):
    return x, 0x10, "x", '\\d', 1_000
