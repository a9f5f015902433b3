def step(x):
    try:
        from nowhere import clean
    except ImportError:
        from helpers import clean
    return clean(x)
