import sys, types
class M(types.ModuleType):
    @property
    def rate(self): return 4
sys.modules[__name__].__class__ = M
