from lib import KNOWN, register


@register("geo")
class Geo:
    def area(self, x):
        return x * 2


def step(x):
    return KNOWN["geo"]().area(x)
