import enum
SFX = '!'
EXTRA = 2
class A(enum.Enum):
    _ignore_ = ["tmp"]
    def _generate_next_value_(name, start, count, last): return name.lower() + SFX
    tmp = 3
    Y = enum.auto()
    X = enum.auto()
    @enum.nonmember
    class Inner: v = 4
    @enum.property
    def p(self): return PP
    def __new__(cls, value):
        obj = object.__new__(cls); obj._value_ = value; obj.extra = EXTRA
        return obj
PP = 1
class W(enum.IntEnum):
    LOW = 1
    HIGH = LOW + 5
class F(enum.Flag):
    R = enum.auto()
    Wr = enum.auto()
    RW = R | Wr
FLAGS = F.R | F.Wr
def step(x): return A.X.value, A.Y, A.Inner.v, A.X.p, A.Y.extra, W.HIGH, FLAGS, F["R"], list(A), A("x!")
