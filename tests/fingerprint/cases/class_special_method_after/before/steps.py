import functools
class Row:
    def show(self, s): return s
Row.__str__ = functools.partialmethod(Row.show, "a")
def step(): return str(Row())
