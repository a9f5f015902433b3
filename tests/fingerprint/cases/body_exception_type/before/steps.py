def step(x):
    try:
        return int(x)
    except ValueError:
        return 0
