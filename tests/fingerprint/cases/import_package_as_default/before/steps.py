import eu
def step(m=eu): return m.tax.rate()
