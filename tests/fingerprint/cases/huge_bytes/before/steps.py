BLOB = b'ab' * 50_000_000

def step(x):
    return BLOB[x]
