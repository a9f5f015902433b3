import operator

VALUE = operator.methodcaller("lower")

def step(x):
    return x, VALUE
