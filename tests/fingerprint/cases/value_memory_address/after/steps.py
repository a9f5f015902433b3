class P:
    pass

ITEMS = {'a': P(), 'b': object(), 'c': [P()]}

def step(x):
    return ITEMS
