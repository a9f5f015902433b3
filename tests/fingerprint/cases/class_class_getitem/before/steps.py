class A:
    def __class_getitem__(cls, item):
        return item * 2

def step(x):
    return A[3]
