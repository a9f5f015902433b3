import lib

T = {'f': lib.f}

def step(x):
    return T['f'](x)
