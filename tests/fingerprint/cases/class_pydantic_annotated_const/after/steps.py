from typing import Annotated

from pydantic import BaseModel, Field

LOW = 4
Score = Annotated[int, Field(gt=LOW)]

class M(BaseModel):
    a: Score = 5

def step(x):
    return M(a=x)
