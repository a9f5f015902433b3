class Shape:
    def __init_subclass__(cls, sides=0):
        cls.known = sides


class Square(Shape, sides=5):
    pass


def step(x):
    return Square.known
