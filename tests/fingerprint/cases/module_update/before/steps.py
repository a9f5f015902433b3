CONF = {'a': 1}
CONF.update(b=2)

def step(x):
    return CONF['b']
