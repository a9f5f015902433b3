LIMIT = 3

def step(x):
    assert x < LIMIT, 'too large'
    return x
