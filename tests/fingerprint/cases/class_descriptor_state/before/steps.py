class Field:
    def __init__(self, n):
        self.n = n

    def __get__(self, obj, owner):
        return self.n

class A:
    size = Field(3)

def step(x):
    return A().size
