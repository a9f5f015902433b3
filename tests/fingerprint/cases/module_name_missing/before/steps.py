def step(x):
    try:
        return LATER
    except NameError:
        return x
