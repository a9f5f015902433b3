import attrs
from attrs import define, field, validators, converters
def conv(v): return int(v) + ADD
ADD = 1
@define(frozen=True)
class A:
    a: int = field(converter=conv, default=3)
    b: str = field(default="x", validator=validators.in_(["x", "y"]))
    c: list = field(factory=lambda: [SEED])
    d = field(default=None, converter=converters.default_if_none("z"))
    @a.validator
    def _check(self, attribute, value):
        if value > MAX: raise ValueError
    @property
    def sum(self): return self.a
SEED = 5
MAX = 9
def step(x): return A(x).sum
