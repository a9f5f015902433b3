class D(dict):
    def __missing__(self, key):
        return 1

TABLE = D()

def step(x):
    return TABLE[x]
