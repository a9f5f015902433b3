import functools
class Retry:
    def __init__(self, n=2): self.n = n
    def __call__(self, fn):
        @functools.wraps(fn)
        def w(*a, **k):
            for _ in range(self.n): return fn(*a, **k)
        return w
class Memo:
    def __init__(self, fn): functools.update_wrapper(self, fn); self.fn = fn; self.tag = TAG
    def __call__(self, *a): return self.fn(*a), self.tag
    def __get__(self, o, t=None): return functools.partial(self, o)
TAG = "t"
@Memo
@Retry(n=3)
def helper(x): return x + 1
class U:
    @Memo
    def m(self): return 4
    @property
    @functools.lru_cache(maxsize=8)
    def q(self): return 5
def step(x): return helper(x), U().m(), U().q
