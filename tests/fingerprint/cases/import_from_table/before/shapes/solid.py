def volume(x):
    return x**3
