import registry

def run(x):
    return x + 1

registry.TABLE['a'] = run
