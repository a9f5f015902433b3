class Box:
    def __class_getitem__(cls, item):
        return cls

    rate = 4

IntBox = Box[int]

def step(x):
    return IntBox.rate
