_VALUES = {'LAZY': 3}

def __getattr__(name):
    return _VALUES[name]
