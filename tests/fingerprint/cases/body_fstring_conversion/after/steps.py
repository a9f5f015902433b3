def step(x):
    return f"{x!s}"
