import lib
class S:
    a = lib.Field(default=None)
def step(): return S.a.get()
