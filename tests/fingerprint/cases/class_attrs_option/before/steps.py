import attrs

@attrs.define
class M:
    a: int = 1
    b: list = attrs.field(factory=list)

    def f(self):
        return 1

ITEM = M(5)

def step(x):
    return M(x).f(), ITEM
