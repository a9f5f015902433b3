import contextlib

@contextlib.contextmanager
def scope(x):
    yield x + 2

def step(x):
    with scope(x) as y:
        return y
