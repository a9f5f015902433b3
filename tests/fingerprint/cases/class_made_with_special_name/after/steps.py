class Base: pass
Km = type("Km", (Base,), {"__unit__": "mile"})
def step(): return Km.__unit__
