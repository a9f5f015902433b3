import operator

VALUE = operator.attrgetter("a")

def step(x):
    return x, VALUE
