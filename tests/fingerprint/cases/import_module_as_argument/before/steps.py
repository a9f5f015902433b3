import helpers

def use(module, x):
    return module.clean(x)

def step(x):
    return use(helpers, x)
