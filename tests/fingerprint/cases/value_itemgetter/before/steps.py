import operator

VALUE = operator.itemgetter(1)

def step(x):
    return x, VALUE
