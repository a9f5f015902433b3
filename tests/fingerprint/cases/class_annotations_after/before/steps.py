class A: pass
A.__annotations__ = {"x": int}
def step(): return str(A.__annotations__)
