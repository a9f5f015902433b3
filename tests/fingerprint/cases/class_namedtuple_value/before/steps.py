from collections import namedtuple

P = namedtuple('P', 'a b')
ITEM = P(1, 2)

def step(x):
    return ITEM.b
