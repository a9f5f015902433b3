def step(x: int, *args: int, y: int = 1, **kw: int):
    return x
