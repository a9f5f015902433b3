class Field:
    def __init__(self, limit): self.limit = limit
class Meta(type):
    def __new__(m, name, bases, ns):
        held = {k: ns.pop(k) for k, v in list(ns.items()) if isinstance(v, Field)}
        cls = super().__new__(m, name, bases, ns)
        cls.__fields__ = held
        return cls
class Row(metaclass=Meta):
    price = Field(10)
def step(): return Row.__fields__["price"].limit
