def do_a(x):
    return x + 1

def step(x, kind='a'):
    return globals()['do_' + kind](x)
