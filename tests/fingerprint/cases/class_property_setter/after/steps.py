class A:
    @property
    def size(self):
        return self._size

    @size.setter
    def size(self, value):
        self._size = value + 2

def step(x):
    a = A()
    a.size = x
    return a.size
