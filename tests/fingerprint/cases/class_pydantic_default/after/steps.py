from pydantic import BaseModel, Field, field_validator

class M(BaseModel):
    a: int = 2
    b: list[str] = Field(default_factory=list, max_length=3)

    @field_validator('a')
    @classmethod
    def check(cls, v):
        return v + 1

ITEM = M(a=5)

def step(x):
    return M(a=x), ITEM
