class Field:
    def __set_name__(self, owner, name):
        self.key = name + '_2'

    def __get__(self, obj, owner):
        return self.key

class A:
    size = Field()

def step(x):
    return A().size
