RATE = 4

def clean(x):
    return x + 1
