import operator
import helpers

def step(x):
    return operator.attrgetter('RATE')(helpers)
