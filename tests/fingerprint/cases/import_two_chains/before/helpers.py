RATE = 3

def clean(x):
    return x + 1
