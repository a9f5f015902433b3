from fractions import Fraction

VALUE = Fraction(1, 4)

def step(x):
    return x, VALUE
