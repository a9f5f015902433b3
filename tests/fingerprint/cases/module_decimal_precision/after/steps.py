import decimal

decimal.getcontext().prec = 10

def step(x):
    return decimal.Decimal(1) / 3
