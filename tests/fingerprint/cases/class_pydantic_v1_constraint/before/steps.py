from pydantic.v1 import BaseModel, Field
class C(BaseModel):
    m: int = Field(1, le=5)
def step():
    try: return C(m=6).m
    except Exception: return "no"
