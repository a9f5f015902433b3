UNIT = 'm'

def step(x):
    return f'{x:>{len(UNIT)}} {UNIT}'
