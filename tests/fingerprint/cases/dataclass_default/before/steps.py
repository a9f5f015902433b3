from dataclasses import dataclass

@dataclass
class Conf:
    rate: int = 3

def step(x):
    return x * Conf().rate
