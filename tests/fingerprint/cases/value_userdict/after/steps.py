from collections import UserDict

CONF = UserDict(a=2)

def step(x):
    return CONF['a']
