class Base: pass
Km = type("Km", (Base,), {"__unit__": "km"})
def step(): return Km.__unit__
