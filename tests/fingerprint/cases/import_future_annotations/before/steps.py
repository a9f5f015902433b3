def step(x: int) -> int:
    return x
