def step(x):
    return x in {"a", "b", "c"}
