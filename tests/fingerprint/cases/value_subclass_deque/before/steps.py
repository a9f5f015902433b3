import collections
class A(collections.deque):
    def extra(self):
        return 1
V = A([1, 2])
def step(x):
    return V
