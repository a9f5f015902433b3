def step(x):
    try:
        return int(x)
    except TypeError:
        return 0
