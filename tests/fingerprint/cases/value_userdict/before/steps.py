from collections import UserDict

CONF = UserDict(a=1)

def step(x):
    return CONF['a']
