TABLE = {}
for n in (1, 2):
    TABLE[n] = lambda x, n=n: x * n

def step(x):
    return TABLE[1](x)
