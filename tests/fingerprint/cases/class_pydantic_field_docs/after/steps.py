from pydantic import BaseModel, Field, AliasChoices, model_serializer, PrivateAttr
from typing import Union, Literal, Annotated
class A(BaseModel):
    t: Literal["a"] = "a"
class B(BaseModel):
    t: Literal["b"] = "b"
class M(BaseModel):
    """Doc."""
    a: int = Field(3, exclude=False, description="e")
    b: int = Field(3, validation_alias="bb", serialization_alias="bs")
    c: Annotated[Union[A, B], Field(discriminator="t")] = A()
    d: int = Field(4, frozen=False, validate_default=False, repr=True)
    e: str = Field("x", pattern="x+", strict=True)
    f: list = Field(default_factory=lambda data: [data["a"]])
    _p: dict = PrivateAttr(default_factory=lambda: {"z": 1})
def step(x): return M(a=x).model_dump()
