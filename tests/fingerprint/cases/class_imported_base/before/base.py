class Base:
    def f(self):
        return 1
