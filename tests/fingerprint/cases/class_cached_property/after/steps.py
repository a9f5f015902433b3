import functools

class A:
    @functools.cached_property
    def size(self):
        return 4

def step(x):
    return A().size
