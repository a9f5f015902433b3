def step(x):
    return f"a {x}"
