def step(x):
    return f"{x['a']}"
