from pydantic import BaseModel
class C(BaseModel):
    n: int = 1
C._rate = 4
def step(): return C._rate
