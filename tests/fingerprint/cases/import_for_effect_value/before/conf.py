RATE = 3
TABLE = {}
TABLE["a"] = 3

def unused(x):
    return x
