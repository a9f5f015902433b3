class Conf(dict):
    pass

CONF = Conf(a=4)

def step(x):
    return CONF['a']
