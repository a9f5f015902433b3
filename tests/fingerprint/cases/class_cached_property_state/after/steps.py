import functools
class unit(functools.cached_property):
    def __init__(self, f, factor): super().__init__(f); self.factor = factor
    def __get__(self, o, t=None): return super().__get__(o, t) * self.factor
class Row:
    def _v(self): return 2
    value = unit(_v, 20)
    value.__set_name__
def step(): return Row().value
