from pydantic import BaseModel

class M(BaseModel):
    """Tell what."""

    a: int = 1

def step(x):
    return M.model_json_schema()
