COUNT = 4

def step(x):
    global COUNT
    COUNT += x
    return COUNT
