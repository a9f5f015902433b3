from helpers import chosen


def step(x):
    return chosen.f()
