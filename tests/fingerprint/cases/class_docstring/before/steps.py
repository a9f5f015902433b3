class A:
    """Doc."""

    def f(self):
        """Doc."""
        return 1

def step(x):
    return A().f()
