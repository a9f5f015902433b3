def step(x):
    return f"b {x}"
