import attr, attrs
@attr.s(auto_attribs=True, order=True)
class A:
    x: int = 1
    y: list = attr.Factory(list)
    z: int = attr.ib(default=attr.Factory(lambda self: self.x + Z, takes_self=True))
Z = 2
@attrs.frozen
class B(A):
    w: int = attrs.field(default=9, eq=str, alias="ww")
    def __attrs_post_init__(self): object.__setattr__(self, "q", QQ)
QQ = 3
INST = B(ww=7)
Made = attrs.make_class("Made", {"k": attrs.field(default=1)})
def step(x): return A(), INST, Made()
