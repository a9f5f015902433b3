def step(x: int, y: 'str' = 'a') -> int:
    z: float = x
    return z
