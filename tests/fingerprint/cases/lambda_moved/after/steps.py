TABLE = {
    'a':
        lambda x: x + 1,
}

def step(x):
    return TABLE['a'](x)
