from decimal import Decimal

VALUE = Decimal("1.0")

def step(x):
    return x, VALUE
