from collections import namedtuple

Point = namedtuple("Point", "x y")
Point.__new__.__defaults__ = (0, 2)


def step(x):
    return Point(x).y
