class Box[T]:
    def get(self, x: T):
        return -x

def step(x):
    return Box[int]().get(x)
