from inspect import getsource as text_of


class Helper:
    # in percent
    rate = 3


def step(x):
    return text_of(Helper)
