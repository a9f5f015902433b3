from collections import OrderedDict

VALUE = OrderedDict(a=1)

def step(x):
    return x, VALUE
