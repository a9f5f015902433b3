from fractions import Fraction

VALUE = Fraction(1, 3)

def step(x):
    return x, VALUE
