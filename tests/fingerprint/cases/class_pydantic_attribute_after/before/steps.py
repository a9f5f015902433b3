from pydantic import BaseModel
class C(BaseModel):
    n: int = 1
C._rate = 3
def step(): return C._rate
