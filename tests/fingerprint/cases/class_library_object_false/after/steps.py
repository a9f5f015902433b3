import lib
class S:
    a = lib.Field(default=False)
def step(): return S.a.get()
