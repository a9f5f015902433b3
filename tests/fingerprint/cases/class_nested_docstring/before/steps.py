class A:
    class B:
        """Doc."""

        key = staticmethod(lambda x: x)

def step(x):
    return A.B.key(x)
