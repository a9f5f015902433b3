class Meta(type):
    def __call__(cls, *args):
        return 2

class A(metaclass=Meta):
    pass

def step(x):
    return A()
