import operator

VALUE = operator.attrgetter("b")

def step(x):
    return x, VALUE
