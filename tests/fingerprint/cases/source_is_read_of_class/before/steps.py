from inspect import getsource as text_of


class Helper:
    # how much
    rate = 3


def step(x):
    return text_of(Helper)
