from pydantic import TypeAdapter, validate_call, BaseModel, create_model, RootModel, Field, ValidationInfo, field_serializer, AfterValidator
from pydantic.dataclasses import dataclass as pdc
from typing import Annotated, Union, Literal
def pos(v):
    assert v > MIN
    return v
MIN = 0
Pos = Annotated[int, AfterValidator(pos)]
TA = TypeAdapter(list[Pos])
Dyn = create_model("Dyn", a=(str, 3))
class R(RootModel[list[int]]): pass
class Base(BaseModel):
    model_config = {"frozen": True}
    kind: Literal["a"] = "a"
class Child(Base):
    v: Annotated[int, Field(ge=2)] = 3
    @field_serializer("v")
    def ser(self, v): return v + S
    def meth(self): return self.v * 2
S = 1
INST = Child(v=5)
@pdc
class P:
    x: int = 4
@validate_call
def helper(n: int, m: float = 2.0): return n + m
def step(x): return TA.validate_python([x]), Dyn().a, R([1]), INST.meth(), INST.model_dump(), P(), helper(x)
