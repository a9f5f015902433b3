def step(x):
    return f"{x:.3f}"
