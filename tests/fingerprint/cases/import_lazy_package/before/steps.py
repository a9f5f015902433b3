import pkg

def step(x):
    return pkg.clean(x)
