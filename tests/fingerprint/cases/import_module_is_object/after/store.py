import sys
class Store:
    VALUE = 4
    def f(self, x): return x + ADD
ADD = 1
sys.modules[__name__] = Store()
