import importlib
NAME = "late2"
def step(x):
    m = importlib.import_module("late1")
    from importlib import import_module as im
    n = im("late2")
    o = __import__("pkg.late3", fromlist=["Q"])
    p = importlib.import_module(f"pkg.{'late3'}")
    return m.A + n.B + o.Q
