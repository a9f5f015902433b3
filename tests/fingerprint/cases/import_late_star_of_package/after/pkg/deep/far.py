def go(x):
    return x + 2
