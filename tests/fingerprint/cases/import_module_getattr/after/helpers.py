_VALUES = {'LAZY': 4}

def __getattr__(name):
    return _VALUES[name]
