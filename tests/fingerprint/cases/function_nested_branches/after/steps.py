DEEP = True
if DEEP:
    if DEEP:
        def helper(x):
            return x + 2
else:
    def helper(x):
        return x + 3


def step(x):
    return helper(x)
