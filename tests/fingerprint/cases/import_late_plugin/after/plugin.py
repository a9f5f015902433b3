import registry

def run(x):
    return x + 2

registry.TABLE['a'] = run
