from pydantic import BaseModel, ConfigDict

class M(BaseModel):
    model_config = ConfigDict(extra='forbid')
    a: int = 1

def step(x):
    return M(**x)
