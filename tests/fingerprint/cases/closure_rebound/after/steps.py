def make(n):
    return lambda x: x * n

helper = make(2)

def step(x):
    return helper(x)
