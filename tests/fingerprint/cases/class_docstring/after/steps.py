class A:
    """Other."""

    def f(self):
        """Other."""
        return 1

def step(x):
    return A().f()
