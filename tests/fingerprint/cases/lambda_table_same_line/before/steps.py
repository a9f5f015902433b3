T = {'a': lambda x: x + 1, 'b': lambda x: x + 2}

def step(x):
    return T['a'](x)
