from pydantic import validate_call

@validate_call
def helper(x: int):
    return x

def step(x):
    return helper(x)
