import array
class A(array.array):
    def extra(self):
        return 1
V = A("i", [1, 3])
def step(x):
    return V
