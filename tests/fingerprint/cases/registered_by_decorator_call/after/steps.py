from lib import KNOWN, register


@register("geo")
class Geo:
    def area(self, x):
        return x * 3


def step(x):
    return KNOWN["geo"]().area(x)
