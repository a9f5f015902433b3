def do_a(x):
    return x + 2

def step(x, kind='a'):
    return globals()['do_' + kind](x)
