from enum import Enum
class Tax(Enum):
    LOW = ("low", 0.1)
    def __new__(cls, code, rate):
        obj = object.__new__(cls); obj._value_ = code; obj._rate = rate; return obj
    @property
    def rate(self): return self._rate
def step(): return Tax.LOW.rate
