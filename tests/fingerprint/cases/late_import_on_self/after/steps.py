class T:
    def __init__(self):
        import pkg.helpers
        self.h = pkg
    def go(self): return self.h.helpers.rate()
def step(): return T().go()
