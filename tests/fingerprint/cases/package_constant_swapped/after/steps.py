from lib import B as LIMIT


def step(x):
    return LIMIT
