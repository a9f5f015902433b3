import json as ser
def step(x):
    return ser.dumps(x)
