from collections import OrderedDict

VALUE = OrderedDict(a=2)

def step(x):
    return x, VALUE
