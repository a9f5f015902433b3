from typing import Annotated
from pydantic import BaseModel, Field, field_validator, model_validator, computed_field, BeforeValidator, ConfigDict, PrivateAttr
def clean(v): return v.strip(CHARS) if isinstance(v, str) else v
CHARS = " "
Name = Annotated[str, BeforeValidator(clean), Field(max_length=LIMIT if False else 9)]
LIMIT = 8
class Inner(BaseModel):
    depth: int = 2
class M(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Name = "n"
    rate: float = Field(default=1.5, gt=0)
    tags: list[str] = Field(default_factory=lambda: ["a"])
    inner: Inner = Inner()
    _secret: int = PrivateAttr(default=7)
    @field_validator("rate")
    @classmethod
    def check(cls, v): return v + EXTRA
    @model_validator(mode="after")
    def both(self): return self
    @computed_field
    @property
    def twice(self) -> float: return self.rate * 2
EXTRA = 0.5
def step(x): return M(name=x).twice
