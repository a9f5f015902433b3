CONF = {'a': 1}
CONF.update(b=3)

def step(x):
    return CONF['b']
