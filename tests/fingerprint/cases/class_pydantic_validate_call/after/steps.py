from pydantic import validate_call

@validate_call
def helper(x: float):
    return x

def step(x):
    return helper(x)
