def one(x):
    return 1

def two(x):
    return 2

helper = two

def step(x):
    return helper(x)
