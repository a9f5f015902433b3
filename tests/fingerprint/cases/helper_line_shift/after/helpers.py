RATE = 3

# a


def clean(x):
    return x + 1
