def step(x):
    return 'ab' + f'{x}cd'
