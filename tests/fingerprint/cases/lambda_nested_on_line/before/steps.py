import functools, contextlib, operator, itertools
from functools import wraps, partial, reduce, singledispatch
comp = lambda *fs: reduce(lambda f, g: lambda x: f(g(x)), fs)
def a(x): return x + 1
def b(x): return x * 2
pipe = comp(a, b, partial(operator.mul, 3))
@functools.cache
def cached(x): return DEEP
DEEP = {"k": [1]}
@contextlib.contextmanager
def cm(v=5): yield v
CM = cm(6)
CB = functools.cmp_to_key(lambda p, q: SGN * (p - q))
SGN = 1
srt = partial(sorted, key=CB, reverse=True)
def step(x):
    with cm() as c: return pipe(x), cached(x), c, srt([x]), list(itertools.starmap(pow, PAIRS))
PAIRS = [(2, 3)]
