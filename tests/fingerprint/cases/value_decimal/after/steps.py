from decimal import Decimal

VALUE = Decimal("1.00")

def step(x):
    return x, VALUE
