RATE = 4

def step(x):
    return eval('RA' + 'TE') * x
