import helpers

def step(x, kind='ean'):
    return getattr(helpers, f'cl{kind}')(x)
