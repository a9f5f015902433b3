import importlib

def step(x):
    return importlib.import_module('helpers').clean(x)
