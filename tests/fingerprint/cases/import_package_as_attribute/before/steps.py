import eu
class T:
    region = eu
def step(): return T.region.tax.rate()
