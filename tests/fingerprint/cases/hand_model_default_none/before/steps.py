from dataclasses import dataclass


@dataclass
class Order:
    price: int
    note: str | None


def step(x):
    try:
        return Order(x).note
    except TypeError:
        return "missing"
