class Base:
    def f(self):
        return 2
