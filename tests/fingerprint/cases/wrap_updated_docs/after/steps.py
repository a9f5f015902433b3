import functools
class Memo:
    def __init__(self, fn): functools.update_wrapper(self, fn); self.fn = fn
    def __call__(self, *a): return self.fn(*a)
def deco(f):
    """Deco doc."""
    @functools.wraps(f)
    def w(*a, **k):
        "inner doc"
        return f(*a, **k)
    return w
@Memo
def h1(x):
    """H."""
    return x
@deco
@functools.lru_cache
def h2(x: int) -> int:
    """H2."""
    return x
def step(x): return h1(x), h2(x)
