def step(x: float, y: bytes = 'a') -> 'Other':
    z: int = x
    return z
