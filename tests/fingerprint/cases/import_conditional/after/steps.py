try:
    from nowhere import clean
except ImportError:
    from helpers import clean

def step(x):
    return clean(x)
