import functools

@functools.lru_cache(maxsize=1)
def helper(x):
    return x

def step(x):
    return helper(x)
