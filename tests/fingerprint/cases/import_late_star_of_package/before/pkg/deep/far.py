def go(x):
    return x + 1
