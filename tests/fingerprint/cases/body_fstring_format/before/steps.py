def step(x):
    return f"{x:.2f}"
