class A:
    class B:
        """Other
        words."""

        key = staticmethod(lambda x: x)

def step(x):
    return A.B.key(x)
