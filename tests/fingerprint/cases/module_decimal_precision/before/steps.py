import decimal

decimal.getcontext().prec = 9

def step(x):
    return decimal.Decimal(1) / 3
