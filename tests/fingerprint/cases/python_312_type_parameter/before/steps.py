def helper[T](x: T) -> T:
    return x

def step(x):
    return helper(x)
