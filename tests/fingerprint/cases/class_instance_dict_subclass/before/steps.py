class Conf(dict):
    pass

CONF = Conf(a=3)

def step(x):
    return CONF['a']
