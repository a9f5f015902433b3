from typing import *
from pydantic import *
from enum import Enum

class M(BaseModel):
    n: Optional['N'] = None
class N(BaseModel):
    b: int = 2
def step():
    try: return str(M(n={}))
    except Exception as e: return type(e).__name__
