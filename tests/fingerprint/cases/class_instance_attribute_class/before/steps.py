class One:
    def f(self):
        return 1

class Two:
    def f(self):
        return 2

ITEMS = [One()]

def step(x):
    return [i.f() for i in ITEMS]
