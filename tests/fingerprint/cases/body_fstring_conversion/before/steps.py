def step(x):
    return f"{x!r}"
