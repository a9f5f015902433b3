class Instance(property):
    def __init__(self, get=None, value=None):
        self.value = value
        property.__init__(self, get)


class Box:
    @Instance
    def size(self):
        """The size."""
        return 3


def step(x):
    return Box().size
