from dataclasses import dataclass

@dataclass
class Conf:
    rate: int = 4

def step(x):
    return x * Conf().rate
