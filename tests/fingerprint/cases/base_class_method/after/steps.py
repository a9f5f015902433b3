class Base:
    def run(self, x):
        return x + 2

class Cleaner(Base):
    rate = 3

    def clean(self, x):
        return self.run(x) * self.rate

    @staticmethod
    def fixed(x):
        return x - 5

    @property
    def size(self):
        return 7

def step(x):
    return Cleaner().clean(x)
