class One:
    def f(self):
        return 1

class Two:
    def f(self):
        return 2

ITEMS = [Two()]

def step(x):
    return [i.f() for i in ITEMS]
