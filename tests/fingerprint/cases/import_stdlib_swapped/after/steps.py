import pickle as ser
def step(x):
    return ser.dumps(x)
