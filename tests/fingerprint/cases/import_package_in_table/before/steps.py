import pkg
MODS = {"p": pkg}
def step(k="p"): return MODS[k].sub.total()
