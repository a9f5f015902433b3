import importlib

def step(x):
    h = importlib.import_module('helpers')
    return h.clean(x)
