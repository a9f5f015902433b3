LIMIT = 4

def step(x):
    assert x < LIMIT, 'too large'
    return x
