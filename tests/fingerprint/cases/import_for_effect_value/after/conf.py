RATE = 4
TABLE = {}
TABLE["a"] = 4

def unused(x):
    return x
