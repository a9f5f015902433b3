from enum import Enum


class Color(Enum):
    RED = 1


Color.LABELS = {Color.RED: "red"}


def step(x):
    return Color.LABELS[Color.RED]
