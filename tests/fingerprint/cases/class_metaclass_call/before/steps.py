class Meta(type):
    def __call__(cls, *args):
        return 1

class A(metaclass=Meta):
    pass

def step(x):
    return A()
