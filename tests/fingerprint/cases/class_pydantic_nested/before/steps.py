from pydantic import BaseModel

class In(BaseModel):
    n: int = 1

class M(BaseModel):
    a: In | None = None

def step(x):
    return M.model_validate(x)
