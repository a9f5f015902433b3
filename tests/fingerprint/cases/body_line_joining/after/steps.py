def step(x):
    return 'a' 'b' + f'{x}c' 'd'
