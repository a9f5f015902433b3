class Meta(type):
    def __new__(m, name, bases, ns, rate=0):
        ns['rate'] = rate
        return super().__new__(m, name, bases, ns)

class A(metaclass=Meta, rate=3):
    pass

def step(x):
    return A.rate
