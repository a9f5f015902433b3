class A: pass
A.__annotations__ = {"y": int}
def step(): return str(A.__annotations__)
