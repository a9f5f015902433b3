def step(x):
    return __import__('helpers').clean(x)
