import effects_mod
def f(x): return x
