from pydantic import BaseModel, computed_field, model_validator

class M(BaseModel):
    a: int = 1

    @computed_field
    @property
    def b(self) -> int:
        return self.a + 2

    @model_validator(mode='after')
    def check(self):
        return self

def step(x):
    return M(a=x).model_dump()
