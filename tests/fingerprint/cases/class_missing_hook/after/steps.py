class D(dict):
    def __missing__(self, key):
        return 2

TABLE = D()

def step(x):
    return TABLE[x]
