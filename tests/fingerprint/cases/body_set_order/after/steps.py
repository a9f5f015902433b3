def step(x):
    return x in {"c", "b", "a"}
