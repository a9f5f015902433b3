"""Module."""

# more

def deco(f):
    def inner(x):
        return f(x)
    return inner

# here
@deco
def step(x):
    return x
