import conf
def step(x):
    return conf.rate
