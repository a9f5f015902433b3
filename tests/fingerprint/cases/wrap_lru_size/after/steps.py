import functools

@functools.lru_cache(maxsize=2)
def helper(x):
    return x

def step(x):
    return helper(x)
