COUNT = 3

def step(x):
    global COUNT
    COUNT += x
    return COUNT
