import lib


@lib.register("geo")
class Geo:
    def area(self, x):
        return x * 2
