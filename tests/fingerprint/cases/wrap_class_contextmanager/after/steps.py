class Scope:
    def __enter__(self):
        return 1

    def __exit__(self, *exc):
        return False

def step(x):
    with Scope() as y:
        return y
