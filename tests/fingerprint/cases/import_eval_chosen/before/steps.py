RATE = 3

def step(x):
    return eval('RA' + 'TE') * x
