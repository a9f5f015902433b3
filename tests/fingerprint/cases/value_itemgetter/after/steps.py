import operator

VALUE = operator.itemgetter(2)

def step(x):
    return x, VALUE
