from pydantic import BaseModel, ConfigDict

class M(BaseModel):
    model_config = ConfigDict(extra='allow')
    a: int = 1

def step(x):
    return M(**x)
