import string, conf
def step(x):
    return x in string.digits
