def helper[T](x: T) -> T:
    return x, 1

def step(x):
    return helper(x)
