class A:
    def __class_getitem__(cls, item):
        return item * 3

def step(x):
    return A[3]
